"""From several sites' updates to one model: wire format, merge, outer step."""
