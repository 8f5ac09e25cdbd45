"""Other people's environments, each by an adapter of a screen: what they are given and answer is theirs, unchanged."""
