"""What all places share: the job, its code, its paths, what hosts have, and the book of what was submitted."""
