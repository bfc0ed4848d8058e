// Package mlog stands in for monis.app/mlog, whose zip the proxy does not serve: what the driver calls of it.
package mlog

import (
	"context"

	"k8s.io/klog/v2"
)

type LogFormat string

const (
	FormatText LogFormat = "text"
	FormatJSON LogFormat = "json"
)

func Setup() func() { return klog.Flush }

func ValidateAndSetKlogLevelAndFormatGlobally(context.Context, klog.Level, LogFormat) error {
	return nil
}

func Error(msg string, err error, kv ...any) { klog.ErrorS(err, msg, kv...) }

func Fatal(err error, kv ...any) {
	klog.ErrorS(err, "fatal", kv...)
	klog.FlushAndExit(klog.ExitFlushTimeout, 1)
}
