package tokens

import (
	"context"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"time"

	"github.com/redis/go-redis/v9"
)

// maxNote bounds the value of a note.
const maxNote = 256

var errNote = errors.New("the shared cache cannot be asked now")

// Claim writes a note unless there is one of that name, and returns the one that
// is there then: its own, or whoever's was first. beside is the note of another
// name, nil for none. It is one round trip, and waits for at most 20 ms.
//
// A note is a small value that replicas tell each other, such as whose a session
// is. Its name may be a secret: the server gets to see a keyed hash of it, and the
// value sealed for that place. What there is and is none of this fleet's notes
// counts as nothing, and stands in the way of a claim until it ends.
func (f *Fleet) Claim(ctx context.Context, name string, value []byte, life time.Duration, also string) (there, beside []byte, err error) {
	places, secret, err := f.places(name, also)
	if err != nil {
		return nil, nil, err
	}
	sealed, err := sealNote(secret, places[0], value)
	if err != nil {
		return nil, nil, err
	}
	var values [2]*redis.StringCmd
	err = f.ask(ctx, places[0], func(ctx context.Context, pipe redis.Pipeliner) {
		pipe.SetNX(ctx, places[0], sealed, life)
		for i, place := range places {
			values[i] = pipe.GetRange(ctx, place, 0, 2*maxNote)
		}
	})
	if err != nil {
		return nil, nil, err
	}
	return openNote(secret, places[0], values[0].Val()), openNote(secret, places[1], values[1].Val()), nil
}

// Write replaces a note, whatever is there.
func (f *Fleet) Write(ctx context.Context, name string, value []byte, life time.Duration) error {
	places, secret, err := f.places(name)
	if err != nil {
		return err
	}
	sealed, err := sealNote(secret, places[0], value)
	if err != nil {
		return err
	}
	return f.ask(ctx, places[0], func(ctx context.Context, pipe redis.Pipeliner) { pipe.Set(ctx, places[0], sealed, life) })
}

// Erase ends notes. It lets them run out, so that the server's ACL need not
// permit one command more.
func (f *Fleet) Erase(ctx context.Context, names ...string) error {
	places, _, err := f.places(names...)
	if err != nil {
		return err
	}
	return f.ask(ctx, places[0], func(ctx context.Context, pipe redis.Pipeliner) {
		for _, place := range places {
			pipe.Set(ctx, place, "", time.Millisecond)
		}
	})
}

// places turns the names of notes into those of the server.
func (f *Fleet) places(names ...string) (places []string, secret string, err error) {
	if secret, err = f.secret(); err != nil {
		f.observe(codeOf(err))
		f.failed(codeOf(err), "")
		return nil, "", errNote
	}
	mac, err := hkdf.Key(sha256.New, []byte(secret), nil, "envoy-mcp-auth shared cache: notes", sha256.Size)
	if err != nil {
		return nil, "", err
	}
	for _, name := range names {
		h := hmac.New(sha256.New, mac)
		part(h, name)
		places = append(places, f.cfg.Spec.Prefix+":note:"+hex.EncodeToString(h.Sum(nil)))
	}
	return places, secret, nil
}

// ask sends a pipeline, when the server is thought to work.
func (f *Fleet) ask(ctx context.Context, place string, fill func(context.Context, redis.Pipeliner)) error {
	// A caller that goes away says nothing of the server, and a note may outlive a call.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), f.patience)
	defer cancel()
	if !f.link.up(ctx) {
		return errNote
	}
	pipe := f.db.Pipeline()
	fill(ctx, pipe)
	_, err := pipe.Exec(ctx)
	// A value of another type is in one's way, and no fault of the server.
	if code := codeOf(err); code != "" && !redis.HasErrorPrefix(err, "WRONGTYPE") {
		f.observe(code)
		f.failed(code, place)
		return errNote
	}
	return nil
}

func sealNote(secret, place string, value []byte) ([]byte, error) {
	aead, err := box(secret, place)
	if err != nil {
		return nil, err
	}
	if len(value) == 0 || len(value) > maxNote {
		return nil, errNote
	}
	return append([]byte{sealVersion}, aead.Seal(nil, nil, value, []byte(place))...), nil //nolint:gosec // G407: as in seal
}

// openNote returns nil for whatever sealNote did not make for this place.
func openNote(secret, place, sealed string) []byte {
	aead, err := box(secret, place)
	if err != nil || sealed == "" || sealed[0] != sealVersion {
		return nil
	}
	value, err := aead.Open(nil, nil, []byte(sealed[1:]), []byte(place))
	if err != nil {
		return nil
	}
	return value
}
