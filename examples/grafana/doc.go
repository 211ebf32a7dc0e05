// Package grafana holds a dashboard, made by ./generate, and what a Grafana needs to
// load it. Its tests hold every query to the metrics of the server.
package grafana

//go:generate go run ./generate dashboard.json
