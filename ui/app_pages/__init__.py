"""The pages, one module per person: patient, researcher, hospital, public."""
