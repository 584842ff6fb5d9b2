"""HAProxy as the gateway. Its configuration and its programs are in `deployments/haproxy`."""
