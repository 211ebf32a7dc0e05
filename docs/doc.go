// Package docs holds the pages of the documentation. Its test follows their links.
package docs
