"""From a trained module with a mask to something small and fast to ship."""

from sparseirm.deploy.command import Export as Export
from sparseirm.deploy.command import export as export
from sparseirm.deploy.compact import Compaction as Compaction
from sparseirm.deploy.compact import compact as compact
from sparseirm.deploy.masks import masked as masked
from sparseirm.deploy.onnx_file import to_onnx as to_onnx
from sparseirm.deploy.packed import load_compact as load_compact
from sparseirm.deploy.packed import save_compact as save_compact
from sparseirm.deploy.speed import fastest as fastest
from sparseirm.deploy.tables import load_table as load_table
