package kube

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"
	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Right is one thing that an account may be allowed to do.
type Right struct {
	Verb      string
	Group     string // API group; "" = core
	Resource  string // with its subresource, as in "pods/log"
	Namespace string // "" = in all namespaces, or outside of them
}

// String is as in "patch deployments.apps in namespace ftp".
func (r Right) String() string {
	s := r.Verb + " " + r.Resource
	if r.Group != "" {
		s += "." + r.Group
	}
	if r.Namespace == "" {
		return s + " cluster-wide"
	}
	return s + " in namespace " + r.Namespace
}

// RightsError names every right that the account lacks.
type RightsError struct {
	Account string // "" = the server does not say
	Missing []Right
}

func (e *RightsError) Error() string {
	var b strings.Builder
	account := e.Account
	if account == "" {
		account = "the account"
	}
	fmt.Fprintf(&b, "%s lacks rights in Kubernetes [FTP501]:", account)
	for _, r := range e.Missing {
		fmt.Fprintf(&b, "\n  %s", r)
	}
	b.WriteString("\nan administrator can grant them with `kubectl apply -f -` of this, and a RoleBinding for the account:\n")
	b.WriteString(e.Roles())
	return strings.TrimRight(b.String(), "\n")
}

// Roles is the YAML of the Roles, and of the ClusterRole, that give what is missing.
func (e *RightsError) Roles() string {
	type rule struct{ namespace, group, resource string }
	verbs := map[rule][]string{}
	for _, r := range e.Missing {
		k := rule{r.Namespace, r.Group, r.Resource}
		verbs[k] = append(verbs[k], r.Verb)
	}
	rules := make([]rule, 0, len(verbs))
	for k := range verbs {
		rules = append(rules, k)
	}
	slices.SortFunc(rules, func(a, b rule) int {
		return strings.Compare(a.namespace+"\x00"+a.group+"\x00"+a.resource, b.namespace+"\x00"+b.group+"\x00"+b.resource)
	})
	var b strings.Builder
	for i, k := range rules {
		if i == 0 || rules[i-1].namespace != k.namespace {
			kind, where := "ClusterRole", ""
			if k.namespace != "" {
				kind, where = "Role", ", namespace: "+k.namespace
			}
			if i > 0 {
				b.WriteString("---\n")
			}
			fmt.Fprintf(&b, "apiVersion: rbac.authorization.k8s.io/v1\nkind: %s\nmetadata: {name: ftpdeploy%s}\nrules:\n", kind, where)
		}
		slices.Sort(verbs[k])
		fmt.Fprintf(&b, "- {apiGroups: [%q], resources: [%q], verbs: [%s]}\n", k.group, k.resource, strings.Join(verbs[k], ", "))
	}
	return b.String()
}

// Check asks the server whether we have all rights; the error is a *RightsError
// that names those which we have not.
func (c *Client) Check(ctx context.Context, rights []Right) error {
	allowed := make([]bool, len(rights))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(8)
	for i, r := range rights {
		group.Go(func() error {
			name, sub, _ := strings.Cut(r.Resource, "/")
			review := &authorizationv1.SelfSubjectAccessReview{Spec: authorizationv1.SelfSubjectAccessReviewSpec{
				ResourceAttributes: &authorizationv1.ResourceAttributes{
					Namespace: r.Namespace, Verb: r.Verb, Group: r.Group, Resource: name, Subresource: sub,
				},
			}}
			return c.try(ctx, "ask for the right to "+r.String(), func(ctx context.Context) error {
				answer, err := c.set.AuthorizationV1().SelfSubjectAccessReviews().Create(ctx, review, metav1.CreateOptions{})
				if err == nil {
					allowed[i] = answer.Status.Allowed
				}
				return err
			})
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	e := &RightsError{}
	for i, r := range rights {
		if !allowed[i] {
			e.Missing = append(e.Missing, r)
		}
	}
	if e.Missing == nil {
		return nil
	}
	return e
}
