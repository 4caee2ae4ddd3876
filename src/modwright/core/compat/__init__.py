"""Private names of other libraries: every one that is read, behind a function that says why."""
