"""Problems, prompts, and the models the embedded default runs on."""
