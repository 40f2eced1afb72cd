"""Floor 0: path rules, table lookup, weight rows and the types that every room shares."""
