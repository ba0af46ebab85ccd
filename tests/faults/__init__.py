"""The same faults on every backend: real processes, a fenced register, and a checker."""
