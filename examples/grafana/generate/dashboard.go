package main

// object is a piece of Grafana's dashboard JSON (schema version 39, Grafana 10.4 and newer).
type object map[string]any

// width of the grid, in Grafana's columns.
const width = 24

// row is a part of the dashboard with a heading.
type row struct {
	title  string
	panels []panel
}

// panel is one chart.
type panel struct {
	title string
	// about says what to read out of it; it shows when the title is pointed at.
	about string
	kind  kind
	// unit is one of Grafana's: reqps, s, percentunit, short, bytes, Bps.
	unit string
	// wide is its width in columns, third when 0.
	wide    int
	queries []query
	// bad is the value from which on it is drawn in red; 0 has none.
	bad float64
	// least is whether it is red below bad, not above.
	least bool
	// stacked puts the series on top of one another.
	stacked bool
	// words are what numbers mean, in place of the numbers.
	words map[string]string
}

// query is an expression, and how each of its series is called.
type query struct{ legend, expr string }

type kind string

const (
	series   kind = "timeseries"
	stat     kind = "stat"
	timeline kind = "state-timeline"
)

func newDashboard(rows []row) object {
	return object{
		"title": "envoy-mcp-auth", "uid": "envoy-mcp-auth", "tags": []string{"envoy-mcp-auth"},
		"description":   "Calls, authentication, tokens and records of envoy-mcp-auth. It needs the recording rules of examples/prometheus/rules.yaml.",
		"schemaVersion": 39, "editable": true, "graphTooltip": 1, "refresh": "30s", "timezone": "utc",
		"time":       object{"from": "now-3h", "to": "now"},
		"templating": object{"list": variables()},
		"links":      []object{},
		"panels":     place(rows),
	}
}

func datasource() object { return object{"type": "prometheus", "uid": "${datasource}"} }

// variables are what can be chosen at the top.
func variables() []object {
	choice := func(name, label, metric string) object {
		return object{
			"type": "query", "name": name, "label": label, "datasource": datasource(),
			"definition": "label_values(" + metric + ", " + name + ")",
			"query":      object{"query": "label_values(" + metric + ", " + name + ")", "refId": name},
			"refresh":    2, "sort": 1, "multi": true, "includeAll": true, "allValue": ".*",
			"current": object{"text": []string{"All"}, "value": []string{"$__all"}},
		}
	}
	return []object{
		{"type": "datasource", "name": "datasource", "label": "Prometheus", "query": "prometheus", "current": object{}},
		choice("upstream", "Upstream", "mcp_auth_decisions_total"),
		choice("instance", "Instance", "mcp_auth_build_info"),
	}
}

// place lays the panels out from left to right, and gives each its id.
func place(rows []row) []object {
	var all []object
	id, y := 0, 0
	add := func(o object, x, w, h int) {
		id++
		o["id"], o["gridPos"] = id, object{"x": x, "y": y, "w": w, "h": h}
		all = append(all, o)
	}
	for _, r := range rows {
		add(object{"type": "row", "title": r.title, "collapsed": false, "panels": []object{}}, 0, width, 1)
		y++
		x, high := 0, 0
		for _, p := range r.panels {
			if x+p.columns() > width {
				x, y = 0, y+high
			}
			high = p.rows()
			add(p.object(), x, p.columns(), high)
			x += p.columns()
		}
		y += high
	}
	return all
}

func (p *panel) columns() int {
	if p.wide > 0 {
		return p.wide
	}
	return width / 3
}

func (p *panel) rows() int {
	if p.kind == stat {
		return 4
	}
	return 8
}

func (p *panel) object() object {
	var targets []object
	for i, q := range p.queries {
		targets = append(targets, object{
			"refId": string(rune('A' + i)), "datasource": datasource(), "expr": q.expr, "legendFormat": q.legend, "editorMode": "code", "range": p.kind != stat, "instant": p.kind == stat,
		})
	}
	return object{
		"type": string(p.kind), "title": p.title, "description": p.about, "datasource": datasource(), "targets": targets,
		"fieldConfig": object{"defaults": p.defaults(), "overrides": []object{}},
		"options":     p.options(),
	}
}

// defaults are how values are drawn.
func (p *panel) defaults() object {
	d := object{"unit": p.unit, "min": 0, "thresholds": p.thresholds(), "mappings": p.mappings(), "noValue": "–"}
	switch p.kind {
	case stat:
		d["color"] = object{"mode": "thresholds"}
	case timeline:
		d["color"] = object{"mode": "thresholds"}
		d["custom"] = object{"fillOpacity": 70, "lineWidth": 0}
	case series:
		custom := object{"lineWidth": 1, "fillOpacity": 5, "showPoints": "never", "stacking": object{"mode": "none"}}
		if p.stacked {
			custom["fillOpacity"], custom["stacking"] = 40, object{"mode": "normal", "group": "A"}
		}
		if p.bad != 0 {
			custom["thresholdsStyle"] = object{"mode": "dashed"}
		}
		d["color"], d["custom"] = object{"mode": "palette-classic"}, custom
	}
	return d
}

func (p *panel) thresholds() object {
	low, high := "green", "red"
	if p.least {
		low, high = "red", "green"
	}
	steps := []object{{"color": low, "value": nil}}
	if p.bad != 0 {
		steps = append(steps, object{"color": high, "value": p.bad})
	}
	return object{"mode": "absolute", "steps": steps}
}

func (p *panel) mappings() []object {
	if len(p.words) == 0 {
		return []object{}
	}
	options := object{}
	for value, text := range p.words {
		options[value] = object{"text": text}
	}
	return []object{{"type": "value", "options": options}}
}

func (p *panel) options() object {
	switch p.kind {
	case stat:
		return object{"reduceOptions": object{"calcs": []string{"lastNotNull"}, "fields": "", "values": false}, "colorMode": "value", "graphMode": "none", "textMode": "auto"}
	case timeline:
		return object{"showValue": "never", "mergeValues": true, "legend": object{"displayMode": "list", "placement": "bottom", "showLegend": true}}
	case series:
	}
	return object{
		"legend":  object{"displayMode": "list", "placement": "bottom", "showLegend": true, "calcs": []string{}},
		"tooltip": object{"mode": "multi", "sort": "desc"},
	}
}
