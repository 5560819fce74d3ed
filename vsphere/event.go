package vsphere

import (
	"context"
	"fmt"
	"reflect"
	"time"

	"github.com/vmware/govmomi/event"
	"github.com/vmware/govmomi/vim25/types"
)

// Act is what somebody did, as one of vCenter's events has it.
type Act struct {
	Who  string // the user; "" = vCenter does not say
	What string // the event's type, as in "VmReconfiguredEvent"; "" = there is none
	When time.Time
}

// The events that tell of changes to a VM.
var (
	Edits     = []string{"VmReconfiguredEvent", "VmRenamedEvent"}
	PowerOffs = []string{"VmPoweredOffEvent", "VmGuestShutdownEvent"}
)

// lastEvents is how many of the newest events of a VM are looked through.
const lastEvents = 20

// Last finds the newest of some types of events of a VM. There may be none, as
// vCenter clears events away after some weeks.
func (c *Client) Last(ctx context.Context, vm *VM, events []string) (Act, error) {
	found, err := event.NewManager(c.vim).QueryEvents(ctx, types.EventFilterSpec{
		Entity:      &types.EventFilterSpecByEntity{Entity: vm.reference, Recursion: types.EventFilterSpecRecursionOptionSelf},
		EventTypeId: events, MaxCount: lastEvents,
	})
	if err != nil {
		return Act{}, fmt.Errorf("ask vCenter %s for the events of VM %s: %w", c.server, vm.Name, err)
	}
	var last Act
	for _, e := range found {
		if one := e.GetEvent(); !one.CreatedTime.Before(last.When) {
			last = Act{one.UserName, reflect.TypeOf(e).Elem().Name(), one.CreatedTime.UTC()}
		}
	}
	return last, nil
}
