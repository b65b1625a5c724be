package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"hodei.dev/cmd/hodei/internal/render"
	provisionerv1 "hodei.dev/proto/hodei/provisioner/v1"
)

func (a *app) providerCommand() *cobra.Command {
	cmd := group(&cobra.Command{
		Use: "provider", Short: "register, list and remove what makes workers",
		Example: "  hodei provider list\n  hodei provider register lab --kind external",
	})
	cmd.AddCommand(a.providerListCommand(), a.providerGetCommand(), a.providerRegisterCommand(), a.providerRemoveCommand())
	return cmd
}

func (a *app) providerListCommand() *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "list providers, their workers and what they can enforce",
		Long:    "List prints the providers. CPU and MEMORY are reserved of the capacity, and whether a limit is `enforced` or `reserved only`.",
		Example: "  hodei provider list\n  hodei provider list --all -o json",
		Args:    none(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, r, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			resp, err := r.providers.ListProviders(ctx, &provisionerv1.ListProvidersRequest{IncludeRemoved: all})
			if err != nil {
				return err
			}
			l := a.newList("NAME", "KIND", "STATE", "HEALTH", "ALERTS", "WORKERS", "IDLE", "BUSY", "CPU", "MEMORY", "ID")
			for _, p := range resp.GetProviders() {
				if err := l.add(p, func() []string { return providerRow(p) }); err != nil {
					return err
				}
			}
			return l.end("no providers", false)
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "also those that were removed")
	return cmd
}

func providerRow(p *provisionerv1.Provider) []string {
	return []string{
		p.GetName(), p.GetKind(), p.GetState(), p.GetHealth(), alerts(p),
		fmt.Sprintf("%d/%d", p.GetWorkers(), p.GetSpec().GetMaxWorkers()), fmt.Sprint(p.GetWorkersIdle()), fmt.Sprint(p.GetWorkersBusy()),
		cpuOf(p), memoryOf(p), p.GetId(),
	}
}

// alerts are what somebody should look at, "-" where there is nothing.
func alerts(p *provisionerv1.Provider) string {
	var out []string
	for _, al := range p.GetAlerts() {
		out = append(out, al.GetAlert())
	}
	if len(out) == 0 {
		return "-"
	}
	return strings.Join(out, ",")
}

func cpuOf(p *provisionerv1.Provider) string {
	return render.Cores(p.GetReservedCpuMillis()) + "/" + render.Cores(p.GetSpec().GetCpuMillis()) + limited(p.GetCpuLimits())
}

func memoryOf(p *provisionerv1.Provider) string {
	return render.Bytes(p.GetReservedMemoryBytes()) + "/" + render.Bytes(p.GetSpec().GetMemoryBytes()) + limited(p.GetMemoryLimits())
}

func (a *app) providerGetCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "get PROVIDER",
		Short:   "say all about a provider",
		Example: "  hodei provider get local\n  hodei provider get local -o json",
		Args:    args(1, 1, "PROVIDER"),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, r, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			resp, err := r.providers.GetProvider(ctx, &provisionerv1.GetProviderRequest{Provider: args[0]})
			if err != nil {
				return err
			}
			return a.provider(resp.GetProvider())
		},
	}
}

// provider prints one provider.
func (a *app) provider(p *provisionerv1.Provider) error {
	if a.json() {
		return render.Object(a.out, p)
	}
	now, spec := a.now(), p.GetSpec()
	var s render.Sheet
	s.Add("id", "%s", p.GetId())
	s.Add("name", "%s", p.GetName())
	s.Add("kind", "%s", p.GetKind())
	s.Add("state", "%s", p.GetState())
	s.Add("health", "%s", p.GetHealth())
	s.Add("why", "%s", p.GetHealthReason())
	for _, al := range p.GetAlerts() {
		s.Add("alert", "%s since %s: %s", al.GetAlert(), since(now, al.GetSince()), al.GetReason())
	}
	if c := p.GetCircuit(); c != nil {
		s.Add("circuit", "%s since %s: %s", c.GetState(), since(now, c.GetOpenedAt()), c.GetReason())
		if c.GetProbe() != "" {
			s.Add("probe", "worker %s", c.GetProbe())
		}
	}
	s.Add("workers", "%d of %d: %d idle, %d busy", p.GetWorkers(), spec.GetMaxWorkers(), p.GetWorkersIdle(), p.GetWorkersBusy())
	s.Add("min idle", "%d", spec.GetMinIdle())
	jobs := "unlimited"
	if n := spec.GetJobsPerWorker(); n > 0 {
		jobs = fmt.Sprint(n)
	}
	s.Add("jobs per worker", "%s", jobs)
	s.Add("cpu reserved", "%s", cpuOf(p))
	s.Add("memory reserved", "%s", memoryOf(p))
	s.Add("isolation", "%s", p.GetIsolation())
	s.Add("runs as", "%s", spec.GetRunAs())
	s.Add("labels", "%s", render.Pairs(spec.GetLabels()))
	s.Add("idle timeout", "%s", spec.GetIdleTimeout())
	s.Add("scheduled timeout", "%s", spec.GetScheduledTimeout())
	s.Add("registered", "%s", since(now, p.GetRegisteredAt()))
	s.Add("changed", "%s", since(now, p.GetChangedAt()))
	return s.Print(a.out)
}

func (a *app) providerRegisterCommand() *cobra.Command {
	spec := &provisionerv1.ProviderSpec{}
	var cpu, mem string
	var jobsPerWorker int32
	var labels []string
	cmd := &cobra.Command{
		Use:   "register NAME --kind KIND",
		Short: "register a provider, or change the one of that name",
		Long: `Register registers a provider. Where there is one of that name it gets the new
settings, and defaults for those that are not given.

Kinds: process starts agents beside the provisioner; external leaves that to you, see
"hodei worker token".`,
		Example: `  hodei provider register fast --kind process --min-idle 2 --max-workers 8 --jobs-per-worker 100
  hodei provider register lab --kind external --cpu 16 --memory 64Gi`,
		Args: args(1, 1, "NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if spec.Name = args[0]; spec.GetKind() == "" {
				return Usage("--kind is missing: process or external")
			}
			if err := checkDuration("--idle-timeout", spec.GetIdleTimeout()); err != nil {
				return err
			}
			if err := checkDuration("--scheduled-timeout", spec.GetScheduledTimeout()); err != nil {
				return err
			}
			if err := reserve(cpu, mem, &spec.CpuMillis, &spec.MemoryBytes); err != nil {
				return err
			}
			var err error
			if spec.Labels, err = pairs("--label", labels); err != nil {
				return err
			}
			if cmd.Flags().Changed("jobs-per-worker") {
				spec.JobsPerWorker = &jobsPerWorker
			}
			return a.register(cmd.Context(), spec)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&spec.Kind, "kind", "", "`KIND`: process or external")
	flags.Int32Var(&spec.MinIdle, "min-idle", 0, "keep `N` workers ready without a job")
	flags.Int32Var(&spec.MaxWorkers, "max-workers", 0, "at most `N` workers; default: twice the CPUs")
	flags.Int32Var(&jobsPerWorker, "jobs-per-worker", 1, "a worker ends after `N` jobs; 0 = never")
	flags.StringVar(&cpu, "cpu", "", "`CORES` that jobs reserve from, such as 8 or 500m; default: what the machine has")
	flags.StringVar(&mem, "memory", "", "`BYTES` that jobs reserve from, such as 16Gi; default: what the machine has")
	flags.StringVar(&spec.IdleTimeout, "idle-timeout", "", "a worker may wait for a job for `DURATION`; default: 5m")
	flags.StringVar(&spec.ScheduledTimeout, "scheduled-timeout", "", "a job may wait for a worker that is being made for `DURATION`; default: 5m")
	flags.StringVar(&spec.RunAs, "run-as", "", "`USER` that jobs run as; default: the provider's")
	flags.StringArrayVar(&labels, "label", nil, "`KEY=VALUE` that jobs may require with --require-label; may be repeated")
	return cmd
}

func (a *app) register(ctx context.Context, spec *provisionerv1.ProviderSpec) error {
	ctx, r, err := a.connect(ctx)
	if err != nil {
		return err
	}
	resp, err := r.providers.RegisterProvider(ctx, &provisionerv1.RegisterProviderRequest{Spec: spec})
	if err != nil {
		return err
	}
	return a.provider(resp.GetProvider())
}

func (a *app) providerRemoveCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "remove PROVIDER",
		Short:   "remove a provider: idle workers go at once, busy ones after their job",
		Example: "  hodei provider remove lab",
		Args:    args(1, 1, "PROVIDER"),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, r, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			resp, err := r.providers.RemoveProvider(ctx, &provisionerv1.RemoveProviderRequest{Provider: args[0]})
			if err != nil {
				return err
			}
			if a.json() {
				return render.Object(a.out, resp.GetProvider())
			}
			_, err = fmt.Fprintf(a.out, "%s %s\n", resp.GetProvider().GetName(), resp.GetProvider().GetState())
			return err
		},
	}
}
