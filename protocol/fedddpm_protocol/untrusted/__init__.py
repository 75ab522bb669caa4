"""What comes from elsewhere: bounded before it is parsed, plain and without keys before it is shown."""
