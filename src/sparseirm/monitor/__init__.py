"""The health monitor: what is odd about the data, a run or a comparison, and what to do about it.

Before training it looks at rows and environments, during training at the penalty, afterwards at what came of
it. Every remark is a `Finding`. It looks only: nothing here changes a run.
"""

from sparseirm.monitor.comparison import Interval as Interval
from sparseirm.monitor.comparison import after as after
from sparseirm.monitor.findings import SEVERITIES as SEVERITIES
from sparseirm.monitor.findings import Finding as Finding
from sparseirm.monitor.findings import counted as counted
from sparseirm.monitor.findings import listed as listed
from sparseirm.monitor.rows import LEVEL as LEVEL
from sparseirm.monitor.rows import before as before
from sparseirm.monitor.rows import change_of_relations as change_of_relations
from sparseirm.monitor.rows import holm as holm
from sparseirm.monitor.rows import shift_of_columns as shift_of_columns
from sparseirm.monitor.rows import spellings as spellings
from sparseirm.monitor.training import Probe as Probe
from sparseirm.monitor.training import Trace as Trace
from sparseirm.monitor.training import during as during
