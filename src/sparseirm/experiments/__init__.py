"""Many runs: the result store, sweeps over processes, tables and figures."""
