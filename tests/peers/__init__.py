"""Independent counterparts for tests: other people's software, each running as a process of its own."""
