package e2e

import "os"

// times is how often something is tried: short, and with FTPDEPLOY_SOAK=1 long.
func times(short, long int) int {
	if os.Getenv("FTPDEPLOY_SOAK") == "1" {
		return long
	}
	return short
}
