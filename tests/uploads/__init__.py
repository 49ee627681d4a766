"""What the upload tests share: audio to order, forms to order, one upload driven to its result."""
