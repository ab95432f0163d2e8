"""What is trained or plugged onto a frozen base model: CAM, APM, their files and their training."""
