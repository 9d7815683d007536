"""What a page shows, and how: a self-contained HTML report, and charts as inline SVG."""
