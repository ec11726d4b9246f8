"""The paper's protocol: data sets, oracle, loop, metrics, tables and figures."""
