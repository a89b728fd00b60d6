"""What structured output costs: tokens, first requests, others' tokens under attack; and two libraries in turn."""
