package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"hodei.dev/cmd/hodei/internal/render"
	"hodei.dev/libs/platform/process"
)

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "print the version of this program",
		Example: "  hodei version -o json",
		Args:    none(),
		RunE: func(*cobra.Command, []string) error {
			b := process.BuildOf("hodei")
			if a.json() {
				data, err := marshal(b)
				if err != nil {
					return err
				}
				return render.Raw(a.out, data)
			}
			_, err := fmt.Fprintf(a.out, "hodei %s\n", b.Version)
			return err
		},
	}
}

func (a *app) completionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "completion bash|zsh|fish",
		Short: "print the completion script of a shell",
		Long:  "Completion prints a script that teaches a shell the commands, the flags and, where a server answers, the ids of jobs.",
		Example: `  source <(hodei completion bash)
  hodei completion zsh > "${fpath[1]}/_hodei"
  hodei completion fish > ~/.config/fish/completions/hodei.fish`,
		Args:      args(1, 1, "the shell"),
		ValidArgs: []string{"bash", "zsh", "fish"},
		RunE: func(cmd *cobra.Command, args []string) error {
			switch args[0] {
			case "bash":
				return cmd.Root().GenBashCompletionV2(a.out, true)
			case "zsh":
				return cmd.Root().GenZshCompletion(a.out)
			case "fish":
				return cmd.Root().GenFishCompletion(a.out, true)
			default:
				return Usage("%q: bash, zsh or fish", args[0])
			}
		},
	}
}
