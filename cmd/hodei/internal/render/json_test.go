package render

import (
	"bytes"
	"encoding/json"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	auditv1 "hodei.dev/proto/hodei/audit/v1"
	platformv1 "hodei.dev/proto/hodei/platform/v1"
	provisionerv1 "hodei.dev/proto/hodei/provisioner/v1"
	registryv1 "hodei.dev/proto/hodei/registry/v1"
	schedulerv1 "hodei.dev/proto/hodei/scheduler/v1"
)

func TestCompact(t *testing.T) {
	zero := int32(0)
	at := timestamppb.New(time.Date(2026, 5, 1, 14, 0, 0, 120e6, time.FixedZone("CEST", 7200)))
	for name, tc := range map[string]struct {
		m    proto.Message
		want string
	}{
		"nothing":       {nil, `null`},
		"zero values":   {&schedulerv1.Usage{}, `{"cpu_user":"","cpu_system":"","max_rss_bytes":0}`},
		"64 bits":       {&schedulerv1.Usage{MaxRssBytes: 1<<63 - 1}, `{"cpu_user":"","cpu_system":"","max_rss_bytes":9223372036854775807}`},
		"absent":        {&schedulerv1.Retry{}, `{"max_attempts":0,"infrastructure_attempts":null,"on":[],"backoff":null}`},
		"present":       {&schedulerv1.Retry{InfrastructureAttempts: &zero}, `{"max_attempts":0,"infrastructure_attempts":0,"on":[],"backoff":null}`},
		"empty":         {&auditv1.ListDeadLettersResponse{}, `{"dead_letters":[],"counts":{}}`},
		"sorted maps":   {&schedulerv1.GetQueueResponse{Jobs: map[string]int64{"b": 2, "a": -1}}, `{"jobs":{"a":-1,"b":2}}`},
		"no escapes":    {&schedulerv1.Script{Interpreter: "<&>", Content: "\"\n"}, `{"interpreter":"<&>","content":"\"\n"}`},
		"bytes":         {&registryv1.LogChunk{Data: []byte{0xff}, Time: at}, `{"stream":"","seq":0,"time":"2026-05-01T12:00:00.12Z","data":"/w==","dropped":0,"eof":false}`},
		"no message":    {&schedulerv1.GetJobResponse{}, `{"job":null}`},
		"oneof":         {&registryv1.ConnectResponse{Message: &registryv1.ConnectResponse_Welcome{Welcome: &registryv1.Welcome{Epoch: 2}}}, `{"welcome":{"epoch":2,"going":false},"run":null,"start":null,"drop":null,"cancel":null,"result_ack":null,"terminate":null,"traceparent":"","heartbeat_ack":null}`},
		"enum, float":   {structpb.NewListValue(&structpb.ListValue{Values: []*structpb.Value{structpb.NewNullValue(), structpb.NewNumberValue(0.5)}}), `{"null_value":null,"number_value":null,"string_value":null,"bool_value":null,"struct_value":null,"list_value":{"values":[{"null_value":"NULL_VALUE","number_value":null,"string_value":null,"bool_value":null,"struct_value":null,"list_value":null},{"null_value":null,"number_value":0.5,"string_value":null,"bool_value":null,"struct_value":null,"list_value":null}]}}`},
		"data":          {&schedulerv1.Event{Data: []byte("{ \"n\": 12345678901234567890 }")}, `{"id":"","type":"","version":0,"position":0,"stream_version":0,"aggregate":"","namespace":"","source":"","correlation_id":"","causation_id":"","actor":"","time":null,"data":{"n":12345678901234567890}}`},
		"data, no JSON": {&schedulerv1.Event{Data: []byte("{")}, `{"id":"","type":"","version":0,"position":0,"stream_version":0,"aggregate":"","namespace":"","source":"","correlation_id":"","causation_id":"","actor":"","time":null,"data":"ew=="}`},
		"no data":       {&schedulerv1.Event{}, `{"id":"","type":"","version":0,"position":0,"stream_version":0,"aggregate":"","namespace":"","source":"","correlation_id":"","causation_id":"","actor":"","time":null,"data":null}`},
	} {
		t.Run(name, func(t *testing.T) {
			got := string(Compact(tc.m))
			if got != tc.want {
				t.Errorf("got  %s\nwant %s", got, tc.want)
			}
			if !json.Valid([]byte(got)) {
				t.Error("not JSON")
			}
		})
	}
}

// Every message of the API is an object with exactly the field names of its .proto.
func TestKeysAreTheFieldNames(t *testing.T) {
	for _, file := range []protoreflect.FileDescriptor{
		schedulerv1.File_hodei_scheduler_v1_job_proto, registryv1.File_hodei_registry_v1_worker_proto, registryv1.File_hodei_registry_v1_log_proto,
		provisionerv1.File_hodei_provisioner_v1_provider_proto, auditv1.File_hodei_audit_v1_audit_proto, platformv1.File_hodei_platform_v1_status_proto,
	} {
		for i := range file.Messages().Len() {
			d := file.Messages().Get(i)
			m := dynamicpb.NewMessage(d)
			var object map[string]any
			if err := json.Unmarshal(Compact(m), &object); err != nil {
				t.Fatalf("%s: %v", d.FullName(), err)
			}
			if len(object) != d.Fields().Len() {
				t.Errorf("%s: %v", d.FullName(), object)
			}
			for f := range d.Fields().Len() {
				if _, ok := object[string(d.Fields().Get(f).Name())]; !ok {
					t.Errorf("%s has no %s", d.FullName(), d.Fields().Get(f).Name())
				}
			}
		}
	}
}

func TestArray(t *testing.T) {
	var b bytes.Buffer
	a := NewArray(&b)
	for range 2 {
		if err := a.Add(&schedulerv1.GetJobResponse{}); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.Close(); err != nil || b.String() != "[\n  {\"job\":null},\n  {\"job\":null}\n]\n" {
		t.Errorf("%q, %v", b.String(), err)
	}
}

func TestWith(t *testing.T) {
	got, err := With("line", 3, &schedulerv1.GetJobResponse{})
	if err != nil || string(got) != `{"line":3,"job":null}` {
		t.Errorf("%s, %v", got, err)
	}
	if got, err = With("line", 3, &platformv1.GetStatusRequest{}); err != nil || string(got) != `{"line":3,"examine":false}` {
		t.Errorf("%s, %v", got, err)
	}
}

func TestTable(t *testing.T) {
	var b bytes.Buffer
	table := NewTable(&b, "A", "LONGER", "C")
	if err := table.Flush(); err != nil || b.Len() > 0 {
		t.Errorf("an empty table prints %q", b.String())
	}
	table.Add("1", "", "x\n\x1b[2Jé\xff")
	if err := table.Flush(); err != nil {
		t.Fatal(err)
	}
	table.Add("22", "éé", "y")
	if err := table.Flush(); err != nil {
		t.Fatal(err)
	}
	if want := "A  LONGER  C\n1  -       x\\n\\x1b[2Jé\\xff\n22  éé      y\n"; b.String() != want {
		t.Errorf("got\n%s\nwant\n%s", b.String(), want)
	}
}

func TestWords(t *testing.T) {
	var got []string
	for _, d := range []time.Duration{0, 1500, 850 * time.Millisecond, 1234 * time.Millisecond, 12 * time.Second, 192 * time.Second, 5*time.Hour + 2*time.Minute, 50 * time.Hour, 300 * time.Hour, -time.Second} {
		got = append(got, Duration(d))
	}
	if want := []string{"0s", "2µs", "850ms", "1.2s", "12s", "3m12s", "5h2m", "2d2h", "12d", "-1s"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	got = []string{Bytes(0), Bytes(1023), Bytes(256 << 20), Bytes(3 << 29), Cores(2000), Cores(500), Command([]string{"sh", "-c", "it's", ""}), Pairs(map[string]string{"b": "2", "a": "1"})}
	if want := []string{"0", "1023", "256Mi", "1.5Gi", "2", "500m", `sh -c 'it'\''s' ''`, "a=1 b=2"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
