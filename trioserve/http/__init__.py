"""What clients meet: routes, status codes, SSE bytes, limits. The only room that knows Quart."""
