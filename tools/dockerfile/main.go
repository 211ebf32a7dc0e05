// Command dockerfile reads a Dockerfile as a build would, with BuildKit's own
// parser, checks and conversion, for every target and platform. Nothing is pulled
// and nothing is run. It prints the configuration of each image, one JSON line
// each, and the warnings of BuildKit's checks on standard error.
//
//	go run . ../../Dockerfile linux/amd64 linux/arm64
//
// It ends with status 0 when there is no warning.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/client/llb/sourceresolver"
	"github.com/moby/buildkit/frontend/dockerfile/dockerfile2llb"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/frontend/dockerui"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

func main() {
	if err := run(context.Background(), os.Args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "dockerfile: %v\n", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) < 2 {
		return errors.New("usage: dockerfile FILE OS/ARCH...")
	}
	text, err := os.ReadFile(args[0])
	if err != nil {
		return err
	}
	all, err := dockerfile2llb.ListTargets(ctx, text)
	if err != nil {
		return err
	}
	out, warnings := json.NewEncoder(os.Stdout), 0
	for _, platform := range args[1:] {
		system, arch, _ := strings.Cut(platform, "/")
		for _, target := range all.Targets {
			opt := dockerfile2llb.ConvertOpt{
				Config:         dockerui.Config{Target: target.Name, BuildPlatforms: []ocispecs.Platform{{OS: "linux", Architecture: "amd64"}}},
				TargetPlatform: &ocispecs.Platform{OS: system, Architecture: arch},
				MetaResolver:   bare{},
				Warn: func(rule, _, _, text string, where []parser.Range) {
					warnings++
					fmt.Fprintf(os.Stderr, "%s:%d: %s: %s (%s, %s)\n", args[0], where[0].Start.Line, rule, text, target.Name, platform)
				},
			}
			result, err := dockerfile2llb.Dockerfile2LLB(ctx, text, opt)
			if err != nil {
				return fmt.Errorf("%s, %s: %w", target.Name, platform, err)
			}
			if _, err := result.State.Marshal(ctx, llb.Platform(*opt.TargetPlatform)); err != nil {
				return fmt.Errorf("%s, %s: %w", target.Name, platform, err)
			}
			if err := out.Encode(map[string]any{"target": target.Name, "platform": platform, "base": target.Base, "image": result.Image}); err != nil {
				return err
			}
		}
	}
	if warnings > 0 {
		return fmt.Errorf("%d warnings", warnings)
	}
	return nil
}

// bare knows nothing of base images, for which a registry would be asked.
type bare struct{}

// ResolveImageConfig is part of llb.ImageMetaResolver.
func (bare) ResolveImageConfig(_ context.Context, ref string, opt sourceresolver.Opt) (string, digest.Digest, []byte, error) {
	p := ocispecs.Platform{OS: "linux", Architecture: "amd64"}
	if opt.ImageOpt != nil && opt.ImageOpt.Platform != nil {
		p = *opt.ImageOpt.Platform
	}
	config, err := json.Marshal(ocispecs.Image{Platform: p})
	return ref, digest.FromBytes(config), config, err
}
