"""Floor 4: the only place where a config becomes objects, and the only one that knows every room below."""
