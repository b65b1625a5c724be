package store

import (
	"github.com/jackc/pgx/v5/pgtype"
)

// appendSQL calls the one function that writes; see the migrations.
const appendSQL = `SELECT first_position, occurred_at FROM hodei.append(
	$1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23, $24, $25, $26, $27, $28)`

// columns are a batch as the function takes it: one array a column.
type columns struct {
	// streams
	sID                                   pgtype.FlatArray[pgtype.UUID]
	sType, sNamespace, sState             []string
	sExpected, sVersion                   []int32
	sTerminal                             []bool
	kNamespace, kKind, kValue, kStreamTyp []string // keys
	kStreamID                             pgtype.FlatArray[pgtype.UUID]
	kDigest                               [][]byte
	// events
	eID, eStreamID                                           pgtype.FlatArray[pgtype.UUID]
	eStreamType, eType, eNamespace, eCorrelation, eCausation []string
	eActor, eSource, eTraceParent, eTraceState               []string
	eVersion, eSchemaVersion                                 []int32
	eDigest, eData                                           [][]byte
}

func (c *columns) add(p *pending) {
	n := 0
	for i, change := range p.Changes {
		c.sID = append(c.sID, p.streams[i])
		c.sType = append(c.sType, change.Stream.Type)
		c.sNamespace = append(c.sNamespace, change.Namespace)
		c.sExpected = append(c.sExpected, int32(change.Expected))
		c.sVersion = append(c.sVersion, int32(change.Expected+len(change.Events)))
		c.sState = append(c.sState, change.State)
		c.sTerminal = append(c.sTerminal, change.Terminal)
		for range change.Events {
			c.eStreamID = append(c.eStreamID, p.streams[i])
			c.addEvent(p, n)
			n++
		}
	}
	for i, k := range p.Keys {
		c.kNamespace = append(c.kNamespace, k.Namespace)
		c.kKind = append(c.kKind, k.Kind)
		c.kValue = append(c.kValue, k.Value)
		c.kStreamTyp = append(c.kStreamTyp, k.Stream.Type)
		c.kStreamID = append(c.kStreamID, p.holders[i])
		c.kDigest = append(c.kDigest, k.Digest)
	}
}

func (c *columns) addEvent(p *pending, n int) {
	e := &p.events[n]
	c.eID = append(c.eID, p.ids[n])
	c.eStreamType = append(c.eStreamType, e.Stream.Type)
	c.eVersion = append(c.eVersion, int32(e.StreamVersion))
	c.eType = append(c.eType, e.Type)
	c.eSchemaVersion = append(c.eSchemaVersion, int32(e.Version))
	c.eNamespace = append(c.eNamespace, e.Namespace)
	c.eCorrelation = append(c.eCorrelation, e.CorrelationID)
	c.eCausation = append(c.eCausation, e.CausationID)
	c.eActor = append(c.eActor, e.Actor)
	c.eSource = append(c.eSource, e.Source)
	c.eTraceParent = append(c.eTraceParent, e.TraceParent)
	c.eTraceState = append(c.eTraceState, e.TraceState)
	c.eDigest = append(c.eDigest, p.digests[n])
	c.eData = append(c.eData, e.Data)
}

// args are the function's, in order. No array is nil: NULL is not empty.
func (c *columns) args() []any {
	return []any{
		c.sID, c.sType, c.sNamespace, c.sExpected, c.sVersion, c.sState, c.sTerminal,
		filled(c.kNamespace), filled(c.kKind), filled(c.kValue), filled(c.kStreamTyp), filled(c.kStreamID), filled(c.kDigest),
		c.eID, c.eStreamType, c.eStreamID, c.eVersion, c.eType, c.eSchemaVersion,
		c.eNamespace, c.eCorrelation, c.eCausation, c.eActor, c.eSource,
		c.eTraceParent, c.eTraceState, c.eDigest, c.eData,
	}
}

func filled[S ~[]E, E any](s S) S {
	if s == nil {
		return S{}
	}
	return s
}
