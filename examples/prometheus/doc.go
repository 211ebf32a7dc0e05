// Package prometheus holds recording rules and alerts. Its tests run their unit
// tests with the real promtool, and hold them to the metrics and to the runbook.
package prometheus
