"""Reading what language models wrote: answer lines, numbers, expressions, chat messages."""
