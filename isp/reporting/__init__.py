"""From the records of tickets to flat rows, tables and figures; pure functions that need no torch."""
