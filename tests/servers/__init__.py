"""Real servers for the tests: native processes on loopback, with throw-away data."""
