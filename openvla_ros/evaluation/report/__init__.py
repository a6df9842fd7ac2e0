"""One self-contained HTML file about what a policy answered to recorded episodes."""
