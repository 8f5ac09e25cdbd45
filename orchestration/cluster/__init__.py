"""Ray, and what runs on it. The only folder that imports ray, beside `submit.ray`."""
