"""Files that are whole or not there, the cache, and S3."""
