"""One module per verb: the only place where the export and the runtime room meet."""
