"""coop"""
