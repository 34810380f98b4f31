"""One module per verb: the only place where the export and the runtime room meet.

A verb's function is `run_` and the verb, as `vqedge ask` calls `run_ask`.
"""
