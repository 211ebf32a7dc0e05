package compare

import "testing"

// TestO16_T8_TheTablesHold sees again what the tables of the page say, and makes
// them with -write.
func TestO16_T8_TheTablesHold(t *testing.T) {
	names := make([]string, 0, 8)
	for _, c := range contenders() {
		names = append(names, c.name)
	}
	names = append(names, injector)
	across := make([]string, 0, 4)
	for _, s := range scenarios(true) {
		across = append(across, s.name)
	}
	down := make([]string, 0, 8)
	for _, b := range behaviours() {
		down = append(down, b.name)
	}
	counts, times := newTable("herd", names, across), newTable("herd-times", names, across)
	outage := newTable("outage", names, []string{hourOf503, failedCalls, backSoon, backLate})
	habit := newTable("behaviour", down, names)

	herds(t, !*write, counts, times)
	outages(t, !*write, outage)
	habits(t, habit)
	if *write {
		injectorHerds(t, counts, times)
		injectorOutage(t, outage)
		injectorHabits(t, habit)
	} else {
		times = newTable(times.name, names, across) // of a shortened run: not for the page
	}
	settle(t, counts, times, outage, habit)
}
