"""What the command line runs: the only place where the export and the runtime room meet.

A verb has a module, whose function is `run_` and the verb, as `vqedge ask` calls `run_ask`; the
other modules are parts of verbs, or what several verbs share.
"""
