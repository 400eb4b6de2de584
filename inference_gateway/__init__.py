"""inference_gateway"""
