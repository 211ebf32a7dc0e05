// Package packaging holds what goes into packages beside the program: the systemd
// unit, manual pages and scripts. Its tests look into what a release would hold.
package packaging
