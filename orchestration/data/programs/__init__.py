"""Small programming tasks with tests, in three difficulties: one file each."""
