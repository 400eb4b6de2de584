"""The window: portal pages, the browser signing component, their wording."""
