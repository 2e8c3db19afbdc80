"""From what a user gives (text, melody, style) to a `Condition`."""
