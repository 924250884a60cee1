"""What is learned on the student's side before its maps are compared; trained with it and never exported."""
