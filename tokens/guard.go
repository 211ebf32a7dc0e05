package tokens

import (
	"errors"
	"net/netip"
	"strings"
	"syscall"
)

// errPrivate is a dial that was not made.
var errPrivate = errors.New("private address")

// guard is the Control of a dialer for addresses that somebody else's document
// named. It sees the address that is dialed, after all resolving, so that no
// name can point elsewhere in between (rule S1).
func guard(_, address string, _ syscall.RawConn) error {
	ap, err := netip.ParseAddrPort(address)
	if err != nil || isPrivate(ap.Addr()) {
		return errPrivate
	}
	return nil
}

// isPrivate reports whether an address is none of the public Internet.
func isPrivate(ip netip.Addr) bool {
	ip = ip.Unmap().WithZone("")
	if netip.MustParsePrefix("64:ff9b::/96").Contains(ip) { // an IPv4 address behind NAT64 (RFC 6052)
		b := ip.As16()
		ip = netip.AddrFrom4([4]byte(b[12:]))
	}
	if !ip.IsGlobalUnicast() || ip.IsPrivate() {
		return true // loopback, link-local, multicast, unspecified; RFC 1918, fc00::/7
	}
	for _, block := range reserved() {
		if block.Contains(ip) {
			return true
		}
	}
	return false
}

// reserved lists what IsGlobalUnicast lets pass (RFC 6890): shared and special
// address space, and the prefixes that carry an IPv4 address inside.
func reserved() []netip.Prefix {
	return []netip.Prefix{
		netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("192.0.0.0/24"),
		netip.MustParsePrefix("198.18.0.0/15"), netip.MustParsePrefix("240.0.0.0/4"),
		netip.MustParsePrefix("::/96"), netip.MustParsePrefix("::ffff:0:0:0/96"), netip.MustParsePrefix("64:ff9b:1::/48"),
		netip.MustParsePrefix("2001::/32"), netip.MustParsePrefix("2002::/16"),
		netip.MustParsePrefix("fec0::/10"),
	}
}

func isLoopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().IsLoopback() || strings.EqualFold(host, "localhost")
}
