"""``rfss serve``: Prefect, MLflow and the deployments of the flows on one machine."""
